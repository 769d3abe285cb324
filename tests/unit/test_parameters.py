"""Parameters beside the tensors, as a header that a gateway forwards brings them: text that somebody typed."""

import pytest

from instantid.errors import InvalidArgument

from .test_intake import resolve

NO_DECIMAL = ("1_000", "+5", "-5", " 5", "5 ", "5\n", "5.0", "5e3", "0x5", "", "\u0665", "\uff15", "9" * 19)
NO_TENANT = ("a\nb", "a\tb", "\x1b[31mred", "a\x7f", "a\x85", "a\u202eb", "a\u200bb", "a\u2028b", "\ue000")


@pytest.mark.parametrize("name", ["deadline_ms", "priority_level"])
@pytest.mark.parametrize("text", NO_DECIMAL)
def test_a_number_is_decimal_digits_of_ascii(name, text):
    with pytest.raises(InvalidArgument, match=f"^{name}: "):
        resolve({name: text})


@pytest.mark.parametrize("text", ["2", "02"])
def test_leading_zeros_are_taken(text):
    assert resolve({"priority_level": text}).priority_level == 2


@pytest.mark.parametrize("tenant", NO_TENANT)
def test_a_tenant_is_printable(tenant):
    with pytest.raises(InvalidArgument, match=r"^tenant: .*; must have 1\.\.128 printable characters"):
        resolve({"tenant": tenant})


@pytest.mark.parametrize("tenant", ["acme", "a b", "Grüße & Söhne", "会社", "a/b:c"])
def test_a_tenant_of_any_script_is_taken(tenant):
    assert resolve({"tenant": tenant}).tenant == tenant
