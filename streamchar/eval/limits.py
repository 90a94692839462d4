"""Limits that the targets of short and of long evaluations share."""

#: Largest offset between lips and sound, in frames.
MAX_LIP_OFFSET = 1
#: Smallest share of frames that are nearest to their own character.
MIN_IDENTITY = 0.95
#: The real-time factor, seconds of computing per second of media, must stay below this.
MAX_RTF = 0.8
