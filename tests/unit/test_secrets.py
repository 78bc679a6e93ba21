import pytest

from fairpriv.errors import InputError
from fairpriv.secrets import masked, secret, without_secrets

HIDDEN = "hunter-2"
# fmt: off
NAMES = [
    "Authorization", "auth", "http_auth", "bearer", "bearerToken", "cookie", "set-cookie", "COOKIES", "pat",
    "github_pat", "dsn", "SENTRY_DSN", "jwt", "JWTs", "passphrase", "ssh-passphrase", "HFTOKEN", "HF_TOKEN",
    "hfToken", "tokens", "keys", "api_keys", "api_key_2", "apikey2", "password1", "dbpassword", "pwd",
    "AWS_SECRET_ACCESS_KEY", "azureConnectionString", "refresh_tokens", "private_key_pem", "creds", "OPENAIAPIKEY",
]
# fmt: on


def test_secrets_are_dropped_at_any_depth():
    config = {
        "logger": {"api_key": "x", "WANDB_API_KEY": "x", "apiKey": "x", "project": "p"},
        "judges": [{"hf_token": "x", "name": "j"}, {"token": 7, "credentials": {"user": "u"}}],
        "db-password": "x",
        "client_secret": "x",
        "token_value": "x",
        "key": ["x"],
    }
    assert without_secrets(config) == {"logger": {"project": "p"}, "judges": [{"name": "j"}, {}]}


@pytest.mark.parametrize(
    "name",
    NAMES,
)
@pytest.mark.parametrize("value", [HIDDEN, [HIDDEN], {"of": {"me": HIDDEN}}])
def test_names_of_secrets(name, value):
    assert without_secrets({"a": [{name: value, "seed": 1}]}) == {"a": [{"seed": 1}]}


def test_what_only_sounds_like_a_secret_stays():
    config = {
        "max_new_tokens": 64,
        "max_prompt_tokens": None,
        "text_tokens": 4096,
        "num_virtual_tokens": 8,
        "tokens": 512,
        "tokenizer": "gpt2",
        "tokenizer_name": "gpt2",
        "keyboard": 1,
        "num_key_value_heads": 8,
        "eos_token_id": 2,
        "eos_token_ids": [2, 3],
        "trainable_token_indices": [1, 2],
        "pad_token": "<pad>",
        "additional_special_tokens": ["<a>"],
        "padtoken": "<pad>",
        "monkey": "m",
        "key_padding": True,
        "sort_keys": True,
        "use_cookies": False,
        "patience": 5,
        "path": "a/b",
        "patterns": ["*.jpg"],
        "author": "a",
        "passes": "p",
        "secretary": "s",
        1: "one",
    }
    assert without_secrets(config) == config


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{HIDDEN}@host/data.csv",
        f"https://{HIDDEN}@host/data.csv",
        f"postgresql://user:{HIDDEN}/@1@host:5432/db",
        f"user:{HIDDEN}@host",
        f"https://host/v1?api_key={HIDDEN}",
        f"https://host/v1?a=1&token={HIDDEN}&b=2",
        f"https://store/x?sv=1&sig={HIDDEN}",
        f"https://store/x?X-Amz-Signature={HIDDEN}",
        f"Authorization: Bearer {HIDDEN}",
        f"authorization: Basic {HIDDEN}",
        f"{{'Authorization': 'Bearer {HIDDEN}'}}",
        f'{{"headers": {{"X-Api-Key": "{HIDDEN}"}}}}',
        f"sent bearer {HIDDEN}, and failed",
        f"+judge.api_key={HIDDEN}",
        f"run judge.token={HIDDEN}",
        f"token={HIDDEN}",
        f"server --token={HIDDEN}",
        f"judge={{hf_token: {HIDDEN}}}",
        f"judge.tokens=[{HIDDEN},{HIDDEN}]",
        f"dataset.source.files=[https://u:{HIDDEN}@h/a,https://u:{HIDDEN}@h/b]",
        f"AccountName=a;AccountKey={HIDDEN};EndpointSuffix=b",
        f"password={HIDDEN}: must be longer",
        "hf_abcdefghijklmnop" + HIDDEN,
    ],
)
def test_secrets_within_texts(text):
    assert HIDDEN not in masked(text)
    assert "***" in masked(text)
    assert masked(masked(text)) == masked(text)
    assert HIDDEN not in str(InputError(f"no file {text}"))
    assert without_secrets({"a": [text]}) == {"a": [masked(text)]}


@pytest.mark.parametrize(
    "text",
    [
        "evaluation.max_new_tokens=-1: must be at least 1",
        "unknown key: lr, did you mean dataset.key",
        "no condition; write key=value",
        "https://host:8000/v1?page=2#top",
        "/home/a@b/data.csv: there is no such file, write to me@example.org",
        "model.path=meta-llama/Llama-2-7b-chat-hf",
        "game={alpha: 0.5, tau: 0.1}",
        "12:30 at 5 o'clock",
        "(?P<age>\\d+)_(?P<race>[0-4])_\\d+ ?\\.jpg",
    ],
)
def test_other_texts_stay_as_they_are(text):
    assert masked(text) == text
    assert without_secrets([text]) == [text]


def test_a_name_tells_a_secret_by_its_value():
    assert secret("tokens", "abc")
    assert not secret("tokens", 64)
