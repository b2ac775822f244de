"""What a job carries to the cluster, judged by the package that Ray itself makes of it: secrets are not among it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from paths import ROOT
from ray._private.runtime_env import packaging

from fedray.errors import ConfigError
from fedray.jobs import submission as jobs
from fedray.jobs.shipment import SECRET_NAMES

#: Files whose names say what they hold.
SECRET = [
    "secrets/auth_token",
    "k8s/secrets/s3",
    "k8s/Secrets/uri",
    "deploy/.secrets/a/b",
    "id_rsa",
    "keys/id_ed25519",
    "ID_RSA",
    "id_ecdsa_sk.bak",
    ".env",
    "app/.env.production",
    "prod.env",
    "server.pem",
    "tls/host.KEY",
    "store.p12",
    "store.jks",
    ".netrc",
    ".aws/credentials",
    "home/.aws/config",
    ".ssh/config",
    ".docker/config.json",
    "kubeconfig",
    "kubeconfig.yaml",
    "dev.kubeconfig",
    ".kube/config",
    ".pypirc",
    ".git-credentials",
    ".pgpass",
    "credentials",
    "credentials.json",
    "aws_credentials.csv",
    "my-credentials-2026.yaml",
    "client_secret_123.json",
    "service-account.json",
    "secrets.toml",
    "db_password.txt",
    "ray_token",
    "token",
    "tokens",
    "tokens.json",
    "hf_token.txt",
    "terraform.tfstate",
    "openai_api_key.txt",
    "me_accessKeys.csv",
    "north/records.salt",
    ".bash_history",
]

#: Files that look a little like those above, and are code, configs or data.
OTHER = [
    "main.py",
    "config.yaml",
    "credentials.py",
    "tokens.py",
    "my_secrets.py",
    "tokenizer.json",
    "tokenizer/vocab.txt",
    "keys.csv",
    "monkey.csv",
    "environment.yml",
    "identifiers.csv",
    "id_columns.json",
    "secretary.csv",
    "data/patients.pem.csv",
    "package/__init__.py",
]


def fill(root: Path, names: list[str], text: str = "x = 1\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def package(root: Path, module: bool = False) -> set[str]:
    """The names in the package that Ray makes for a job with this working directory, or with this module."""
    env = jobs.make_runtime_env(root, [root] if module else [], [], {}, {})
    target = root.parent / f"package-{module}.zip"
    target.unlink(missing_ok=True)
    packaging.create_package(str(root), target, include_gitignore=True, include_parent_dir=module, excludes=list(env["excludes"]))
    with zipfile.ZipFile(target) as made:
        return {name for name in made.namelist() if not name.endswith("/")}


def test_names_of_secrets_stay_here_and_everything_else_travels(tmp_path: Path) -> None:
    root = tmp_path / "work"
    fill(root, SECRET + OTHER)
    assert package(root) == set(OTHER)
    assert package(root, module=True) == {f"work/{name}" for name in OTHER}


def test_ledgers_stay_here(tmp_path: Path) -> None:
    """A copy would be charged in the job's directory, and thrown away with it."""
    root = tmp_path / "work"
    fill(root, ["heart.ledger/records.jsonl", "sub/va.ledger/va.jsonl", "main.py"])
    assert package(root) == {"main.py"}


def test_what_stays_here_is_told(tmp_path: Path) -> None:
    fill(tmp_path, ["secrets/a", "secrets/b", ".env", "main.py"])
    (tmp_path / ".gitignore").write_text("ignored\n")
    fill(tmp_path, ["ignored/server.key"])
    told: list[str] = []
    jobs.make_runtime_env(tmp_path, [], [], {}, {}, told.append)
    assert told == [f"--working-dir {tmp_path}: not shipped, for their names are those of secrets: .env, secrets/"]


KEYS = {
    "PEM": "-----BEGIN " + "PRIVATE KEY-----\nMIIEvgIBADANBgkqhkiG9w0B\n",
    "RSA": "-----BEGIN RSA " + "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
    "on one line": "KEY=-----BEGIN " + "PRIVATE KEY-----MIIEvgIBADANBgkqhkiG9w0B",
    "EC": "-----BEGIN EC " + "PRIVATE KEY-----\r\nMHcCAQEE\r\n",
    "OpenSSH": "# work\n-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n",
    "PGP": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----\n\nlQOYBF\n",
    "JSON of a service account": '{"private_key": "-----BEGIN ' + 'PRIVATE KEY-----\\nMIIEvQIBADAN\\n"}',
    "indented in YAML": "tls:\n  key: |\n    -----BEGIN " + "PRIVATE KEY-----\n    MIIEvgIBADANBgkqhkiG9w0B\n",
    "PuTTY": "PuTTY-User-Key-" + "File-3: ssh-ed25519\n",
    "AWS id": "AKIA" + "IOSFODNN7ABCDEFG",
    "AWS session": "key = ASIA" + "IOSFODNN7ABCDEFG\n",
    "AWS secret": "aws_secret_access_" + "key = wJalrXUtnFEMIK7MDENGbPxRfiCYABCDEFGH1234\n",
    "AWS secret in JSON": '{"SecretAccess' + 'Key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYABCDEFGH12"}',
    "kubeconfig": "users:\n- user:\n    client-key-" + "data: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQo=\n",
    "GitHub": "t = 'ghp_" + "a1B2" * 9 + "'",
    "Slack": "xoxb-" + "123456789012-abcdefABCDEF",
    "Google": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "Hugging Face": "hf_" + "aBcD" * 9,
    "netrc": "machine api.example login me " + "password hunter2\n",
    "UTF-16": ("-----BEGIN " + "PRIVATE KEY-----\nMIIEvgIBADANBgkqhkiG9w0B\n").encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_file_that_looks_like_a_key_stops_the_submission_with_its_name(kind: str, tmp_path: Path) -> None:
    fill(tmp_path, ["main.py"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "plain.txt").write_bytes(KEYS[kind].encode("latin-1"))
    with pytest.raises(ConfigError, match=r"--working-dir .*: notes/plain\.txt looks like a secret \(.*\.rayignore"):
        jobs.make_runtime_env(tmp_path, [], [], {}, {})
    (tmp_path / ".rayignore").write_text("/notes\n")
    jobs.make_runtime_env(tmp_path, [], [], {}, {})
    with pytest.raises(ConfigError, match=r"--py-module .*/notes: plain\.txt looks like a secret"):
        jobs.make_runtime_env(tmp_path, [tmp_path / "notes"], [], {}, {})


@pytest.mark.parametrize(
    "text",
    [
        'if b"-----BEGIN ' + 'PRIVATE KEY-----" in data:\n    refuse()\n',
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@host\n",
        "SHA256 ASIAN MARKETS AKIAK\naws_secret_access_key = os.environ['KEY']\n",
        "password = input()\n",
    ],
)
def test_what_only_speaks_of_keys_travels(text: str, tmp_path: Path) -> None:
    fill(tmp_path, ["code.py"], text)
    jobs.make_runtime_env(tmp_path, [], [], {}, {})


def test_a_link_to_a_secret_stops_the_submission(tmp_path: Path) -> None:
    root = tmp_path / "work"
    fill(tmp_path, ["home/.docker/settings", "home/id_rsa"])
    fill(root, ["main.py"])
    (root / "conf").symlink_to(tmp_path / "home" / ".docker")
    with pytest.raises(ConfigError, match=r"conf/settings looks like a secret \(a link to .*/home/\.docker/settings"):
        jobs.make_runtime_env(root, [], [], {}, {})
    (root / "conf").unlink()
    fill(root, ["secrets/pin"])
    (root / "pin").symlink_to(root / "secrets" / "pin")
    with pytest.raises(ConfigError, match=r"pin looks like a secret \(a link to .*/work/secrets/pin\)"):
        jobs.make_runtime_env(root, [], [], {}, {})
    (root / "pin").unlink()
    (root / "code").symlink_to(root / "main.py")
    jobs.make_runtime_env(root, [], [], {}, {})


def test_the_ignoring_of_gitignore_is_the_same_as_ray_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, ["ignored/a.txt"], KEYS["PEM"])
    (tmp_path / ".gitignore").write_text("ignored\n")
    jobs.make_runtime_env(tmp_path, [], [], {}, {})
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    with pytest.raises(ConfigError, match=r"ignored/a\.txt looks like a secret"):
        jobs.make_runtime_env(tmp_path, [], [], {}, {})


def test_git_ignores_the_same_names() -> None:
    """Plain `ray job submit --working-dir .` and `git add` go by this file alone."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert set(SECRET_NAMES) <= set(ignored)


def test_this_repository_can_be_submitted_and_loses_no_code() -> None:
    env = jobs.make_runtime_env(ROOT, [], [], {}, {})
    leaves_out = packaging._get_excludes(ROOT, list(env["excludes"]))
    for folder in ("fedray", "cluster", "configs", "k8s", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".json", ".md", ".ini", ".yml") and "secrets" not in path.parts:
                assert not leaves_out(path), path
