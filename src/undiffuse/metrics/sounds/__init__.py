"""Measures of sounds: functions of int16 waveforms (N, L) at a rate, whatever represents them in a model."""
