"""Import from and export to other programs. Nothing foreign is unpickled or executed."""
