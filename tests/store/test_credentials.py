"""Credentials in an address are refused, and never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import warm_python

from ld3_dist.core.errors import InputError
from ld3_dist.store.credentials import masked
from ld3_dist.store.opening import open_storage

SECRETS = ("AKIAEXAMPLE", "wJalrXUtn", "K7MDENG", "s3cr3t")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAEXAMPLE:wJalrXUtn@bucket/prefix",
        "s3://AKIAEXAMPLE:wJalrXUtn/K7MDENG@bucket/prefix",
        "s3://AKIAEXAMPLE@bucket/prefix",
        "s3://AKIAEXAMPLE:wJalrXUtn/bucket",
        "gs://AKIAEXAMPLE:wJalrXUtn@bucket",
        "S3://AKIAEXAMPLE:wJalrXUtn@bucket/prefix",
        "s3://bucket/prefix?secret_key=wJalrXUtn",
        "s3://bucket/prefix?region=us-east-1&access_key=AKIAEXAMPLE&secret_key=wJalrXUtn",
        "s3://bucket/prefix?session_token=wJalrXUtn",
        "s3://bucket?SecretAccessKey=wJalrXUtn",
        "s3://bucket/prefix?endpoint_override=http://AKIAEXAMPLE:wJalrXUtn@127.0.0.1:9000",
        "s3://bucket/x?endpoint_override=http%3A%2F%2FAKIAEXAMPLE%3AwJalrXUtn%40127.0.0.1",
        "abfs://container/x?account_key=wJalrXUtn",
        "sftp://user:s3cr3t@host/folder",
        "gs://bucket/x?token=s3cr3t",
    ],
)
def test_credentials_in_an_address_are_refused_and_masked(url: str) -> None:
    with pytest.raises(InputError, match="credentials belong in the environment") as caught:
        open_storage(url)
    assert caught.value.__cause__ is None
    assert not [secret for secret in SECRETS if secret in str(caught.value)]
    assert url.partition("://")[0].lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000&region=us-east-1&anonymous=true",
        "s3://bucket/user@example/run",
        "gs://bucket/monkeys",
        "abfs://container@account.dfs.core.windows.net/folder",
        "memory://bucket/out",
    ],
)
def test_addresses_without_credentials_are_left_alone(url: str) -> None:
    assert open_storage(url).url == url.partition("?")[0]
    assert "***" not in str(open_storage(url))


def test_the_command_line_never_shows_a_secret(tmp_path: Path) -> None:
    """Not in the message, not in a traceback; exit code 2."""
    (tmp_path / "e.yaml").write_text(
        "name: e\nmodels: [analytic:mixture-2d]\nsolvers: [ddim]\nnfe: [3]\n"
    )
    for url in ("s3://AKIAEXAMPLE:wJalrXUtn@bucket/x", "s3://bucket/x?secret_key=wJalrXUtn"):
        command = ["-m", "ld3_dist.cli", "sweep", str(tmp_path / "e.yaml"), "--output", url]
        done = warm_python.run(command)
        assert done.returncode == 2
        said = done.stdout + done.stderr
        assert "credentials belong in the environment" in " ".join(said.split())
        assert "Traceback" not in said
        assert not [secret for secret in SECRETS if secret in said]


def test_texts_are_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnK7MDENG")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    (tmp_path / "auth_token").write_text("x")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    text = (
        f"GET s3://K:S@b/x?secret_key=abc&region=eu: wJalrXUtnK7MDENG, token 0123456789abcdef, "
        f"{tmp_path}/auth_token"
    )
    assert masked(text) == (
        f"GET s3://***@b/x?secret_key=***&region=eu: ***, token ***, {tmp_path}/auth_token"
    )
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "wJalrXUtnK7MDENG"
