"""Models from and for other programs. Nothing foreign is unpickled or executed."""
