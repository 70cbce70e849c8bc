"""Class names, and maps from fine to coarse classes: entry i of a map is the coarse class of fine class i.

Source: docs/sources.md, "Classes" and "Coarse classes".
"""

from collections.abc import Sequence
from pathlib import Path

from kernels.files import check_regular
from kernels.program import UserError

MA52 = (0,) * 5 + (1,) * 6 + (2,) * 13 + (3,) * 8 + (4,) * 6 + (5,) * 10 + (6,) * 4
"""The seven body parts that the data set itself defines."""
NTU60_SEMANTIC8 = tuple(
    int(digit) for digit in "0000222334" "2221111111" "1443233222" "4224440444" "5555555556" "6676776777"
)  # fmt: skip
"""Our own grouping by meaning. It respects the official division into daily, medical and mutual actions."""
NTU120_SEMANTIC8 = NTU60_SEMANTIC8 + tuple(
    int(digit) for digit in "1122224044" "4422024243" "2222001122" "2242444433" "3355566666" "6777777777"
)  # fmt: skip
"""The eight groups of NTU60_SEMANTIC8 for all 120 classes of NTU RGB+D 120."""
NTU60_GUIDE_DIV8 = tuple(min(fine // 8, 7) for fine in range(60))
"""The map of the coarse cross-entropy in PCANetwork's training guide: eight consecutive classes form a coarse class."""
NTU60_GUIDE_RANGES = (0,) * 10 + (1,) * 10 + (2,) * 10 + (3,) * 10 + (4,) * 5 + (5,) * 5 + (6,) * 5 + (7,) * 5
"""The map of the tree loss in PCANetwork's training guide."""
COARSE_MAPS = {
    "ma52": MA52,
    "semantic8": NTU60_SEMANTIC8,
    "semantic8_ntu120": NTU120_SEMANTIC8,
    "guide_div8": NTU60_GUIDE_DIV8,
    "guide_ranges": NTU60_GUIDE_RANGES,
}


def check_coarse_map(coarse_map: Sequence[int], num_classes: int, num_coarse: int) -> tuple[int, ...]:
    """Return the map as a tuple.

    Raises UserError unless the map has one entry for each fine class and uses every coarse class at least once.
    """
    if len(coarse_map) != num_classes:
        maps = [name for name, known in COARSE_MAPS.items() if len(known) == num_classes]
        raise UserError(
            f"the coarse map has {len(coarse_map)} entries for {num_classes} classes: choose --coarse-map "
            f"{' or '.join([*maps, 'a text file'])} with {num_classes} numbers, or leave out coarse classes with "
            "--set data.coarse_map=()"
        )
    for fine, coarse in enumerate(coarse_map):
        if not 0 <= coarse < num_coarse:
            raise UserError(
                f"the coarse map assigns class {fine} to coarse class {coarse}: use numbers from 0 to {num_coarse - 1}"
            )
    if empty := sorted(set(range(num_coarse)) - set(coarse_map)):
        raise UserError(
            f"the coarse map assigns no class to coarse class {empty[0]}: number coarse classes from 0, with no gap"
        )
    return tuple(coarse_map)


def read_coarse_map(source: str | Path, num_classes: int) -> tuple[int, ...]:
    """Return a map of COARSE_MAPS by its name, or read one from a text file.

    The file lists integers, separated by spaces, commas or line breaks. The number of coarse classes is the largest
    entry plus one. Raises UserError if the file cannot be read, or is not a map for `num_classes` classes.
    """
    values = COARSE_MAPS[str(source)] if str(source) in COARSE_MAPS else parse_numbers(Path(source))
    try:
        return check_coarse_map(values, num_classes, max(0, *values) + 1)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def parse_numbers(path: Path) -> list[int]:
    """Read the integers of a text file. Raises UserError if the file is unreadable or empty, or contains other text."""
    check_regular(path)
    try:
        words = path.read_bytes().decode("ascii", "replace").replace(",", " ").split()
    except OSError as error:
        names = ", ".join(f"{name} ({len(known)} classes)" for name, known in COARSE_MAPS.items())
        raise UserError(
            f"cannot read a coarse map from {path} ({error.strerror}): pass a readable file or one of {names}"
        ) from None
    for word in words:
        if not word.removeprefix("-").isdecimal():
            raise UserError(f"{path} contains {word!r}: a coarse map is a list of integers, one for each class")
    if not words:
        raise UserError(f"{path} is empty: a coarse map is a list of integers, one for each class")
    return [int(word) for word in words]


MA52_COARSE_NAMES = ("body", "head", "upper limb", "lower limb", "body-hand", "head-hand", "leg-hand")
MA52_NAMES = (
    *("shaking body", "sitting straightly", "shrugging", "turning around", "rising up"),
    *("bowing head", "head up", "tilting head", "turning head", "nodding", "shaking head"),
    *("scratching arms", "playing objects", "putting hands together", "rubbing hands", "pointing oneself"),
    *("clenching fist", "stretching arms", "retracting arms", "waving", "spreading hands", "hands touching fingers"),
    *("other finger movements", "illustrative gestures"),
    *("shaking legs", "curling legs", "spread legs", "closing legs", "crossing legs", "stretching feet"),
    *("retracting feet", "tiptoe"),
    *("scratching or touching neck", "scratching or touching chest", "scratching or touching back"),
    *("scratching or touching shoulder", "arms akimbo", "crossing arms"),
    *("playing or tidying hair", "scratching or touching hindbrain", "scratching or touching forehead"),
    *("scratching or touching face", "rubbing eyes", "touching nose", "touching ears", "covering face"),
    *("covering mouth", "pushing glasses"),
    *("patting legs", "touching legs", "scratching legs", "scratching feet"),
)
SEMANTIC8_NAMES = (
    "eat and groom",
    "dressing",
    "object or device handling",
    "posture and leg motion",
    "hand or head gestures",
    "medical",
    "mutual forceful",
    "mutual friendly or approach",
)


def coarse_names(coarse_map: Sequence[int]) -> tuple[str, ...]:
    """The names of the coarse classes of a published map, or an empty tuple for another map."""
    known = {MA52: MA52_COARSE_NAMES, NTU60_SEMANTIC8: SEMANTIC8_NAMES, NTU120_SEMANTIC8: SEMANTIC8_NAMES}
    return known.get(tuple(coarse_map), ())


NTU60_NAMES = (
    *("drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup", "throw", "sitting down"),
    *("standing up", "clapping", "reading", "writing", "tear up paper", "wear jacket", "take off jacket"),
    *("wear a shoe", "take off a shoe", "wear on glasses", "take off glasses", "put on a hat/cap"),
    *("take off a hat/cap", "cheer up", "hand waving", "kicking something", "reach into pocket", "hopping", "jump up"),
    *("phone call", "playing with phone/tablet", "typing on a keyboard", "pointing to something", "taking a selfie"),
    *("check time (watch)", "rub two hands", "nod head/bow", "shake head", "wipe face", "salute"),
    *("put palms together", "cross hands in front", "sneeze/cough", "staggering", "falling", "headache"),
    *("chest pain", "backache", "neckache", "nausea/vomiting", "use a fan", "punching/slapping", "kicking other"),
    *("pushing other", "pat on back", "point finger at other", "hugging", "giving something"),
    *("touch other's pocket", "handshaking", "walking towards", "walking apart"),
)
NTU120_NAMES = (
    *NTU60_NAMES,
    *("put on headphone", "take off headphone", "shoot at basket", "bounce ball", "tennis bat swing"),
    *("juggling table tennis balls", "hush", "flick hair", "thumb up", "thumb down", "make ok sign"),
    *("make victory sign", "staple book", "counting money", "cutting nails", "cutting paper", "snapping fingers"),
    *("open bottle", "sniff", "squat down", "toss a coin", "fold paper", "ball up paper", "play magic cube"),
    *("apply cream on face", "apply cream on hand back", "put on bag", "take off bag", "put something into a bag"),
    *("take something out of a bag", "open a box", "move heavy objects", "shake fist", "throw up cap/hat"),
    *("hands up", "cross arms", "arm circles", "arm swings", "running on the spot", "butt kicks", "cross toe touch"),
    *("side kick", "yawn", "stretch oneself", "blow nose", "hit other with something", "wield knife towards other"),
    *("knock over other", "grab other's stuff", "shoot at other with a gun", "step on foot", "high-five"),
    *("cheers and drink", "carry something with other", "take a photo of other", "follow other"),
    *("whisper in other's ear", "exchange things with other", "support somebody with hand", "finger-guessing game"),
)
