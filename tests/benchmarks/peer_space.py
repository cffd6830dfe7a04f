"""The space that train_step.py and score.py measure on: AttentiveNAS's blocks at 32 px, 1.16 M parameters."""

from searchspaces.bignas import BigNAS, Stage, Table

BATCH = 32
TABLE = Table(
    resolution=(24, 32),
    stem=(16,),
    stages=(
        Stage((16,), (1,), (3,), (1,), 1),
        Stage((16, 24), (1, 2), (3, 5), (3, 4), 2),
        Stage((24, 32), (1, 2), (3, 5), (3, 4), 2, se=True),
        Stage((40, 48), (1, 2), (3, 5), (3, 4), 2),
        Stage((64, 72), (1, 2), (3, 5), (3, 4), 1, se=True),
        Stage((96, 112), (1, 2), (3, 5), (4,), 2, se=True),
        Stage((120, 128), (1,), (3, 5), (4,), 1, se=True),
    ),
    head=(256, 320),
    stem_stride=2,
    conv_shortcut=True,
    wide_head=True,
)


def peer_space() -> BigNAS:
    """A supernet with fresh weights."""
    return BigNAS(TABLE)
