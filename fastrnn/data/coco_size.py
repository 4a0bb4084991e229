"""A data set as large as the published one, to try long runs on: same files, keys, shapes and types.

Every image is a scene: three things, a place, two adjectives and something that is done. Its captions are
written from the scene by :data:`TEMPLATES`; their lengths, and how many distinct words a minibatch has, are
about those of COCO. Its features are the sum of a random vector for each of the scene's words, and noise.
Nothing in it is about a real picture.
"""

from collections.abc import Callable

import numpy as np

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.data import coco
from fastrnn.data.prepare import words
from fastrnn.files import StrPath

NOUNS = words("""
man woman dog cat train table street room plate tennis field bus snow water bike beach girl boy kitchen
horse pizza board giraffe bathroom ball toilet road clock zebra player wave phone elephant chair sign game
building car motorcycle bench laptop truck kite bed ocean surfer bear computer desk tree bird sheep umbrella
fence skier wall window bowl court boat sink airplane group child hill baseball tower cake bat racket
skateboard light cow hand sandwich mountain slope counter hat stove frisbee park traffic floor grass
vegetable glass couch person city vase oven fruit parking meter mirror bag box door jet track station crowd
flower shirt teddy suitcase rock banana corner video donut bread hydrant apple cup refrigerator soccer lamp
cheese bridge house plane controller knife fork spoon salad chicken orange lake river bottle book shelf tie
suit dress jacket glove helmet trick ramp rail pole wire cabinet curtain blanket pillow carpet tile brick
stone path trail forest garden yard farm barn goat duck goose swan pigeon parrot owl eagle monkey lion tiger
wolf fox rabbit mouse turtle fish shark whale seal crab egg bacon steak rice soup noodle pasta sauce pepper
onion carrot potato tomato lettuce mushroom corn bean pea grape lemon peach pear plum cherry berry melon
cookie pie muffin pancake waffle candy coffee tea beer wine juice soda candle basket bucket broom mop towel
soap brush comb razor scissor pencil pen paper card letter stamp envelope newspaper magazine camera
television radio speaker keyboard monitor printer cable plug battery clown nurse doctor chef waiter teacher
student soldier sailor pilot driver farmer dancer singer artist painter actor baker judge king queen prince
baby uncle cousin friend neighbor guest tourist skater runner rider swimmer climber catcher pitcher umpire
referee coach fan team band parade market shop store mall hotel cafe restaurant bar school church castle
museum theater stadium airport harbor dock pier island cliff cave desert valley waterfall stream pond pool
fountain statue monument gate stairway ladder roof balcony porch garage alley sidewalk highway tunnel
intersection crosswalk scooter wagon cart tractor trailer van taxi ambulance ferry canoe raft yacht
helicopter balloon rocket parachute tent backpack wallet purse watch ring necklace crown mask flag banner
poster
""")
VERBS = words("""
stand walk look hold play eat show wait talk work jump sleep watch pull carry fly hang throw catch kick
paint draw read cook clean wash climb pass cross open push lean hit point touch feed brush pose stack fill
cover surround follow lead greet visit guard lift drop mount brew roast cut swing turn gather reach perform
grill paw chew sniff lick pet hug kiss help teach learn build repair park load pack wear drink sing
""")
ADJECTIVES = words("""
white black large red small young green blue brown old yellow wooden little big orange grey tall open pink
empty busy colorful purple parked many several beautiful bright dark full clean dirty wet dry hot cold warm
fresh sunny cloudy rainy foggy snowy grassy sandy rocky dusty muddy shiny rusty broken modern antique
vintage striped spotted plain fancy plastic metal glassy leather cotton silver golden round square flat
steep narrow wide long short thin thick heavy soft hard smooth rough fluffy furry hairy sleepy happy sad
angry hungry tired playful quiet loud calm wild tame lonely crowded messy tidy cozy elegant rustic rural
urban tropical frozen
""")
# N, M and O are things, P is a place, A and B are adjectives, V is what is done; Ns are several, Vs is who
# does it.
TEMPLATES = (
    "two A Ns on a M",
    "the N is Ving a M",
    "a A N Ving in the P",
    "a N and a M on the P",
    "a A N that Vs by the M",
    "a A N Ving on a M",
    "a N is Ving a A M in the P",
    "the A N Vs next to a M and a O",
    "there is a A N that Vs near the P",
    "a group of A Ns Ving in front of a M",
    "a A N and a M Ving on top of a B P",
    "two Ns are Ving with a A M by the P",
    "a close up of a A N Ving beside some Ms on a P",
    "a A N with a M Vs while the B O is on the P",
    "some Ns Ving around a A M with three Os in the B P",
    "an image of a A N Ving by the M of a very B P",
)
SLOTS = {"N": NOUNS, "M": NOUNS, "O": NOUNS, "P": NOUNS, "A": ADJECTIVES, "B": ADJECTIVES, "V": VERBS}
SIZES = {"train": (82_783, 400_135), "val": (40_504, 195_954)}  # images and captions, as published
WORDS = 1000  # beside the special tokens; some plurals are not among them and become <UNK>
WIDTHS = {False: 512, True: 4096}  # of features after a PCA, and of raw ones
SLICE = 2048  # images whose features are in memory at a time


def make_coco_size(
    out: StrPath, *, raw: bool = False, seed: int = 0, progress: bool = False
) -> dict[str, tuple[int, int]]:
    """Write a data directory of the published sizes: 400,135 captions of 82,783 images to train on.

    Features are 512 wide, and 4,096 with ``raw`` (2 GB). One seed always gives the same data set, with one
    version of NumPy. Returns the number of images and captions by split.

    Raises ``FileExistsError`` where ``out`` holds something, ``ValueError`` for a negative seed, ``OSError``
    where the disk is full; nothing is left behind then.
    """
    from tqdm.auto import tqdm

    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    idx_to_word = vocabulary()
    word_to_idx = {word: i for i, word in enumerate(idx_to_word)}
    meanings = {
        slot: rng.standard_normal((len(each), WIDTHS[raw]), np.float32) for slot, each in SLOTS.items()
    }
    captions: dict[str, Array] = {}
    total = sum(images for images, _ in SIZES.values())
    with (
        files.new_directory(out) as directory,
        tqdm(desc="features", total=total, unit="image", disable=not progress) as bar,
    ):
        for split, (images, count) in SIZES.items():
            scenes = {slot: _frequent_first(rng, len(each), images) for slot, each in SLOTS.items()}
            image_idxs = np.arange(count, dtype=np.int32) % images
            of_captions = {slot: chosen[image_idxs] for slot, chosen in scenes.items()}
            captions[f"{split}_captions"] = write_captions(of_captions, rng, word_to_idx)
            captions[f"{split}_image_idxs"] = image_idxs
            with coco.new_h5(directory / coco.features_file(split, not raw)) as file:
                features = file.create_dataset("features", (images, WIDTHS[raw]), "<f4")
                for start in range(0, images, SLICE):
                    rows = slice(start, min(start + SLICE, images))
                    noise = rng.standard_normal((rows.stop - start, WIDTHS[raw]), np.float32)
                    features[rows] = noise + sum(meanings[slot][scenes[slot][rows]] for slot in SLOTS)
                    bar.update(rows.stop - start)
            names = "".join(f"no_picture_{split}_{i:06}.jpg\n" for i in range(images))
            files.write_text(directory / coco.urls_file(split), names)
        with coco.new_h5(directory / coco.CAPTIONS) as file:
            for name, array in captions.items():
                file[name] = array
        files.write_json(
            directory / coco.VOCABULARY, {"idx_to_word": idx_to_word, "word_to_idx": word_to_idx}
        )
    return SIZES


def vocabulary() -> list[str]:
    """``idx_to_word``: the special tokens and the words of the captions, plurals last."""
    fixed = [word for template in TEMPLATES for word in template.split() if word.islower()]
    doing, does = ([form(verb) for verb in VERBS] for form in (_doing, _plural))
    every = dict.fromkeys([*fixed, *ADJECTIVES, *NOUNS, *doing, *does, *map(_plural, NOUNS)])
    return [*coco.SPECIAL, *list(every)[:WORDS]]


def write_captions(scenes: dict[str, Array], rng: np.random.Generator, word_to_idx: dict[str, int]) -> Array:
    """A caption (17,) for each scene, by a template at random; slots hold the numbers (n,) of their words."""
    n = len(scenes["N"])
    captions = np.zeros((n, coco.MAX_WORDS + 2), np.int32)
    chosen = rng.integers(0, len(TEMPLATES), n)
    start, end, unknown = (coco.SPECIAL.index(special) for special in ("<START>", "<END>", "<UNK>"))
    for number, template in enumerate(TEMPLATES):
        rows = np.flatnonzero(chosen == number)
        length = len(template.split())
        captions[rows, 0], captions[rows, length + 1] = start, end
        for column, word in enumerate(template.split(), 1):
            if word.islower():
                captions[rows, column] = word_to_idx[word]
            else:
                form = _FORMS[word[1:]]
                tokens = np.array([word_to_idx.get(form(each), unknown) for each in SLOTS[word[0]]])
                captions[rows, column] = tokens[scenes[word[0]][rows]]
    vowels = np.array([word[0] in "aeiou" for word in word_to_idx])
    before_vowel = (captions[:, :-1] == word_to_idx["a"]) & vowels[captions[:, 1:]]
    captions[:, :-1][before_vowel] = word_to_idx["an"]
    return captions


def _frequent_first(rng: np.random.Generator, count: int, n: int) -> Array:
    """Numbers (n,) of words, the first ones most often (Zipf's law, as words of COCO's captions come)."""
    weights = 1 / (np.arange(count) + 3.0)
    return rng.choice(count, n, p=weights / weights.sum())


def _plural(word: str) -> str:
    """Things, and what somebody does."""
    if word in ("man", "woman"):
        return word[:-2] + "en"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _doing(verb: str) -> str:
    """Walking, riding, cutting."""
    if verb in ("cut", "hit", "hug", "pet", "drop"):
        verb += verb[-1]
    return verb.removesuffix("e") + "ing"


_FORMS: dict[str, Callable[[str], str]] = {"": str, "s": _plural, "ing": _doing}
