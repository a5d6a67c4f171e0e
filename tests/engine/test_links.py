"""What links mean, which are refused, and which addresses count as the internet."""

from __future__ import annotations

import pytest

from ai_toolkit_inference.core.errors import DownloadError
from ai_toolkit_inference.engine._http import is_public, shown
from ai_toolkit_inference.engine._links import clean_name, is_remote, read_link, token_for

SHA = "ab" * 32
HUB = "https://huggingface.co"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("HF_ENDPOINT", "HF_TOKEN", "CIVITAI_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("https://host/a.safetensors", True),
        ("HTTPS://host/a.safetensors", True),
        ("http://host/a.safetensors", True),
        (" hf://org/repo/a.safetensors", True),
        ("style.safetensors", False),
        ("folder/style.safetensors", False),
        ("C:\\loras\\style.safetensors", False),
        ("tiny", False),
        ("", False),
    ],
)
def test_links_are_told_from_names(text, remote):
    assert is_remote(text) is remote


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://a.io/x.safetensors", "https://a.io/x.safetensors"),
        ("https://A.io:443/x y.safetensors?b=1 2", "https://a.io/x%20y.safetensors?b=1%202"),
        ("https://bücher.de/x", "https://xn--bcher-kva.de/x"),
        (f"{HUB}/o/r/blob/main/d/x.safetensors", f"{HUB}/o/r/resolve/main/d/x.safetensors"),
        (f"{HUB}/o/r/raw/v1/x.safetensors", f"{HUB}/o/r/resolve/v1/x.safetensors"),
        (
            f"{HUB}/o/r/resolve/main/x.safetensors?download=true",
            f"{HUB}/o/r/resolve/main/x.safetensors",
        ),
        (
            "https://hf.co/o/r/blob/main/blob/x.safetensors",
            f"{HUB}/o/r/resolve/main/blob/x.safetensors",
        ),
        ("hf://o/r/x.safetensors", f"{HUB}/o/r/resolve/main/x.safetensors"),
        ("hf://o/r@v1.0/d/x y.safetensors", f"{HUB}/o/r/resolve/v1.0/d/x%20y.safetensors"),
        ("hf://o/r@refs/pr/3/x.safetensors", f"{HUB}/o/r/resolve/refs%2Fpr%2F3/x.safetensors"),
        ("hf://datasets/o/r/x.safetensors", f"{HUB}/datasets/o/r/resolve/main/x.safetensors"),
    ],
)
def test_links_become_the_address_of_a_file(text, url):
    assert read_link(text).url == url


def test_an_endpoint_replaces_the_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.io/hf/")
    link = read_link("hf://o/r/x.safetensors")
    assert link.url == "https://mirror.io/hf/o/r/resolve/main/x.safetensors"
    page = read_link("https://mirror.io/hf/o/r/blob/main/x.safetensors")
    assert (page.url, page.on_hub) == (link.url, True)


def test_an_unencrypted_endpoint_is_refused(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:8080")
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        read_link("hf://o/r/x.safetensors")


def test_an_ending_gives_the_checksum():
    link = read_link(f"https://a.io/x.safetensors#sha256={SHA.upper()}")
    assert (link.sha256, link.url) == (SHA, "https://a.io/x.safetensors")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://a.io/x.safetensors", "https://HOST"),
        ("ftp://a.io/x.safetensors", "https://HOST"),
        ("https:///x.safetensors", "https://HOST"),
        ("https://me:pass@a.io/x.safetensors", "passwords"),
        ("https://a.io:99999/x", "no web address"),
        ("https://[::1/x", "no web address"),
        ("https://a..io/x", "no web address"),
        ("https://a.io/x\r\nHost: b", "control characters"),
        ("https://a.io\\@b.io/x", "backslashes"),
        ("https://a.io/x.ckpt", "safetensors"),
        (f"{HUB}/o/r", "page of Hugging Face"),
        (f"{HUB}/o/r/tree/main", "page of Hugging Face"),
        (f"{HUB}/o/r/blob/main/README.md", "name a .safetensors file"),
        ("hf://o/r", "hf://OWNER/REPOSITORY/FILE"),
        ("hf://o/r/", "hf://OWNER/REPOSITORY/FILE"),
        ("hf://o/r/x.bin", "can run code"),
        ("https://a.io/x?type=Model&token=pass", "is a secret"),
        ("https://a.io/x?API-Key=pass", "is a secret"),
        ("https://a.io/x#sha256=123", "64 hex digits"),
        ("https://a.io/x#md5=123", "#sha256="),
    ],
)
def test_other_links_are_refused_with_what_to_do(text, says):
    with pytest.raises(DownloadError) as caught:
        read_link(text)
    assert says in str(caught.value)
    assert "pass@" not in str(caught.value) and "=pass" not in str(caught.value)


def test_messages_show_links_without_secrets():
    assert shown("https://me:pass@a.io/x?sig=1#f") == "https://a.io/x"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34 behind an IPv6-only network
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::1", False),
        ("2001:0:1::1", False),
        ("2001:db8::1", False),
        ("2002:7f00:1::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1%1", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("style.safetensors", "style"),
        ("Style v1.2 (final).SafeTensors", "Style_v1.2_(final)"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\evil.safetensors", "evil"),
        ("..", "lora"),
        ("", "lora"),
        (".hidden", "hidden"),
        ("a:b*c?<d>|e", "a_b_c_d_e"),
        ("nul.safetensors", "_nul"),
        ("COM1.v2.safetensors", "_COM1.v2"),
        ("\u0441\u0442\u0438\u043b\u044c", "\u0441\u0442\u0438\u043b\u044c"),
        ("\u732b" * 200, "\u732b" * 40),
        ("a\x00b\nc", "a_b_c"),
    ],
)
def test_file_names_fit_every_system(name, clean):
    assert clean_name(name) == clean


def test_tokens_go_to_their_own_site(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_hub")
    monkeypatch.setenv("CIVITAI_TOKEN", "civ")
    assert token_for(read_link("hf://o/r/x.safetensors")) == "hf_hub"
    assert token_for(read_link("https://civitai.com/api/download/models/1")) == "civ"
    for host in (
        "a.io",
        "huggingface.co.a.io",
        "cdn.huggingface.co",
        "huggingface.co:8443/o/r/resolve/main",
    ):
        assert token_for(read_link(f"https://{host}/x.safetensors")) is None


def test_a_mirror_takes_the_tokens_place(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_hub")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.io")
    assert token_for(read_link("hf://o/r/x.safetensors")) == "hf_hub"
    assert token_for(read_link(f"{HUB}/o/r/resolve/main/x.safetensors")) is None


def test_a_token_with_odd_characters_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("CIVITAI_TOKEN", "pässword")
    with pytest.raises(DownloadError) as caught:
        token_for(read_link("https://civitai.com/api/download/models/1"))
    assert "pässword" not in str(caught.value)
