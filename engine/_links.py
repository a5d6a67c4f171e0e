"""What a link to a LoRA means: https://, Hugging Face pages, hf://, and which token goes along."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlunsplit

from ..core.errors import DownloadError
from ._http import check_url, same_origin, shown

HUB = "https://huggingface.co"
HUB_ALIASES = ("hf.co", "www.huggingface.co")
CIVITAI = "https://civitai.com"
NAME_BYTES = 120  # leaves room for the checksum below every file system's 255
RESERVED = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{name}{i}" for name in ("COM", "LPT") for i in "123456789"),
}
OTHER_KINDS = (".bin", ".ckpt", ".gguf", ".pickle", ".pkl", ".pt", ".pth", ".zip")
SECRETS = {
    "accesstoken",
    "apikey",
    "apitoken",
    "auth",
    "authorization",
    "hftoken",
    "password",
    "secret",
    "token",
}
SAFETENSORS_ONLY = "only .safetensors files are loaded, for others can run code: convert it first"
REPOSITORY = re.compile(
    r"hf://((?:datasets/|spaces/)?[^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/@]+))?/(.+)", re.I
)


@dataclass(frozen=True)
class Link:
    """A file to fetch. key: names the link in the cache; a query cannot be read back from it.

    name: for the file, without ending. named: whether it is the file's own, not a number or such.
    sha256: what the user says the file has, or None. on_hub: Hugging Face, or its mirror.
    """

    url: str
    name: str
    named: bool
    sha256: str | None
    on_hub: bool

    @property
    def key(self) -> str:
        return hashlib.sha256(self.url.encode()).hexdigest()[:32]

    @property
    def shown(self) -> str:
        return shown(self.url)


def is_remote(text: str) -> bool:
    """Whether a LoRA's name is a link; http:// ones are, to be refused with a reason."""
    return text.strip().lower().startswith(("https://", "http://", "hf://"))


def read_link(text: str) -> Link:
    """The file that a link names. Raises DownloadError, before anything is asked of a network."""
    address, _, fragment = text.strip().partition("#")
    sha256 = _checksum(fragment)
    from_hub = address.lower().startswith("hf://")
    url = _from_repository(address) if from_hub else _from_page(address)
    parts = check_url(url)
    name = unquote(parts.path).rsplit("/", 1)[-1]
    if name.lower().endswith(OTHER_KINDS):
        raise DownloadError(f"{shown(url)} is refused: {SAFETENSORS_ONLY}")
    on_hub, named = _on_hub(url), name.lower().endswith(".safetensors")
    if on_hub and not named:
        raise DownloadError(f"{shown(url)} is refused: name a .safetensors file of the repository")
    return Link(urlunsplit(parts), clean_name(name), named, sha256, on_hub)


def token_for(link: Link) -> str | None:
    """The token that the link's host may see: Hugging Face's or its mirror's, and Civitai's."""
    token = None
    if same_origin(link.url, _endpoint()):
        token = _hub_token()
    elif same_origin(link.url, CIVITAI):
        token = os.environ.get("CIVITAI_TOKEN", "").strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise DownloadError("the token holds characters that no token has; copy it again")
    return token or None


def _hub_token() -> str | None:
    from huggingface_hub import get_token

    try:
        return get_token()  # HF_TOKEN, or what `hf auth login` stored
    except OSError as error:
        raise DownloadError(
            f"the Hugging Face token could not be read ({type(error).__name__}); set HF_TOKEN, or "
            "log in again with `hf auth login`"
        ) from error


def clean_name(name: str) -> str:
    """A file name without ending that every system can hold, made of a part of a link."""
    stem = re.split(r"[\\/]", unicodedata.normalize("NFC", name))[-1]
    stem = re.sub(r"\.safetensors$", "", stem, flags=re.I)
    stem = re.sub(r"[^\w.+()-]+", "_", stem).encode(errors="ignore")[:NAME_BYTES]
    clean = stem.decode(errors="ignore").strip("._-") or "lora"
    return f"_{clean}" if clean.split(".")[0].upper() in RESERVED else clean


def _checksum(fragment: str) -> str | None:
    if not fragment:
        return None
    found = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment.strip().lower())
    if found is None:
        raise DownloadError(
            f"unknown ending #{fragment[:80]} of the link; allowed: #sha256= and 64 hex digits"
        )
    return found[1]


def _from_repository(address: str) -> str:
    found = REPOSITORY.fullmatch(unquote(address))
    if found is None:
        raise DownloadError(
            f"{shown(address)} names no file; write hf://OWNER/REPOSITORY/FILE.safetensors or "
            "hf://OWNER/REPOSITORY@REVISION/FILE.safetensors"
        )
    repository, revision, path = found.groups()
    revision = quote(revision or "main", safe="")
    return f"{_endpoint()}/{quote(repository)}/resolve/{revision}/{quote(path)}"


def _from_page(address: str) -> str:
    """The link itself, and for pages of Hugging Face the file that they show."""
    parts = check_url(address)
    if parts.netloc in HUB_ALIASES:
        parts = parts._replace(netloc=check_url(HUB).netloc)
    url = urlunsplit(parts)
    if not _on_hub(url):
        _refuse_secrets(url, parts.query)
        return url
    path, found = re.subn(r"/(?:blob|resolve|raw)/(?=[^/]+/.)", "/resolve/", parts.path, count=1)
    if not found:
        raise DownloadError(
            f"{shown(url)} is a page of Hugging Face, not a file: open the .safetensors file "
            "there and copy its link, or write hf://OWNER/REPOSITORY/FILE.safetensors"
        )
    return urlunsplit(parts._replace(path=path, query=""))


def _refuse_secrets(url: str, query: str) -> None:
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if re.sub(r"[_-]", "", name).lower() in SECRETS:
            raise DownloadError(
                f"{shown(url)} is refused: {name}=... is a secret, which would be saved in "
                "workflows and pictures. Take it out; tokens belong into HF_TOKEN or CIVITAI_TOKEN"
            )


def _endpoint() -> str:
    """HF_ENDPOINT, or Hugging Face."""
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not endpoint.lower().startswith("https://"):
        raise DownloadError(f"HF_ENDPOINT is {shown(endpoint)!r}; allowed: an https:// address")
    return endpoint


def _on_hub(url: str) -> bool:
    return same_origin(url, HUB) or same_origin(url, _endpoint())
