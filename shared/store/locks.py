"""The numbers of all advisory locks: those of one database must differ, whoever asks for them.

7_316_205_117 is taken as well: an early release waits for it while it migrates.
"""

SWEEP_LOCK = 7_316_205_118
MIGRATION_LOCK = 7_316_205_119
QUARANTINE_LOCK = 7_316_205_120
