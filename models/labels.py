"""Class names of both data sets in the order of their labels (docs/sources.md, "Classes")."""

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

NTU60_SEMANTIC8_NAMES = (
    "eat and groom",
    "dressing",
    "object or device handling",
    "posture and leg motion",
    "hand or head gestures",
    "medical",
    "mutual forceful",
    "mutual friendly or approach",
)

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
