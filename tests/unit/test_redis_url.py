"""`core/redis_url.py`: a password is never shown, whatever it is written like; the options of TLS have one meaning."""

import random
import ssl

import pytest

from upnext.core import redis_url
from upnext.engine.redis.endpoint import parse_url
from upnext.errors import UsageError

SPECIAL = "/?#@:[]%&=+,;!~"

SHAPES = [
    "redis://:{}@h:6379/0",
    "redis://user:{}@h:6379/0?db=1",
    "rediss://:{}@h",
    "redis+sentinel://:{}@a,b/m",
    "redis+cluster://u:{}@a,b",
    "unix://:{}@/x.sock",
    "redis:/:{}@h",
    "rediss//:{}@h",
    "user:{}@h:6379",
    "http://u:{}@h/0",
    "redis://u:{}@h:port/0",
    "redis://u:{}@",
]


def passwords() -> list[str]:
    rng = random.Random(11)
    return [
        "".join(rng.choice(("hun", "t3r", "12", *SPECIAL)) for _ in range(rng.randint(1, 6))) + "zq" for _ in range(300)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_part_of_a_password_is_shown(shape: str) -> None:
    for password in passwords():
        url = shape.format(f"QX{password}")
        shown = redis_url.redact(url)
        assert "QX" not in shown, url
        assert "zq" not in shown, url
        try:
            parse_url(url)
        except UsageError as error:
            assert "QX" not in str(error), url
            assert "zq" not in str(error), url
            assert error.__cause__ is None


@pytest.mark.parametrize("password", ["hun/ter2", "hunter?2", "hunter#2", "12/ter", "12?x", "hun#ter@2"])
@pytest.mark.parametrize("shape", SHAPES[:6])
def test_a_password_that_ends_the_host_part_is_refused_with_the_cure(shape: str, password: str) -> None:
    with pytest.raises(UsageError, match="write % as %25, / as %2F"):
        redis_url.split(shape.format(password))


@pytest.mark.parametrize("password", ["hun#ter", "hun@ter", "x=y"])
def test_a_password_among_the_options_is_not_shown(password: str) -> None:
    assert password not in redis_url.redact(f"unix:///x.sock?db=1&password={password}")
    assert password not in redis_url.redact(f"rediss://h?ssl_password={password}")


@pytest.mark.parametrize("password", ["p@ss", "p:ss", "%2Fpss%23%3F", "p~s+s"])
def test_a_password_with_other_signs_is_taken(password: str) -> None:
    assert parse_url(f"redis://u:{password}@h:7000/3").nodes == (("h", 7000),)
    assert parse_url(f"unix:///run/a@b.sock?password={password}").path == "/run/a@b.sock"


@pytest.mark.parametrize(
    ("option", "verify", "check"),
    [
        ("ssl_cert_reqs=none", False, False),
        ("ssl_cert_reqs=CERT_NONE", False, False),
        ("ssl_cert_reqs=CERT_REQUIRED", True, True),
        ("ssl_cert_reqs=required", True, True),
        ("ssl_cert_reqs=CERT_OPTIONAL", True, True),
        ("ssl_check_hostname=false", True, False),
        ("ssl_min_version=TLSv1.3", True, True),
    ],
)
def test_the_spellings_of_the_options_of_tls(option: str, verify: bool, check: bool) -> None:
    endpoint = parse_url(f"rediss://h/0?{option}")
    context = endpoint.tls_context()
    assert context is not None
    assert (context.verify_mode is ssl.CERT_REQUIRED, context.check_hostname) == (verify, check)
    assert context.minimum_version >= (ssl.TLSVersion.TLSv1_3 if "min" in option else ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ssl_cert_reqs=nonsense", "ssl_cert_reqs='nonsense' in a Redis URL: use required or none"),
        ("ssl_cert_req=none", "a Redis URL has no option 'ssl_cert_req'; did you mean ssl_cert_reqs?"),
        ("ssl_zzz=1", "a Redis URL has no option 'ssl_zzz'; it has ssl_cert_reqs, "),
        ("ssl_check_hostname=maybe", "use true or false"),
        ("ssl_min_version=SSLv3", "use TLSv1_2 or TLSv1_3"),
        ("ssl_keyfile=/k", "ssl_keyfile needs ssl_certfile"),
        ("ssl=perhaps", "ssl='perhaps' in a Redis URL: use true or false"),
        ("db=two", "db= is not the number of a database"),
    ],
)
def test_an_option_that_is_not_known_is_refused(option: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(f"rediss://h/0?{option}")
    assert message in str(caught.value)
