"""Where disks come back to, and on whose account: options that `job create` and `job ship` share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from diskprep.cli import output
from diskprep.errors import UsageError
from diskprep.importjob.model import ReturnAddress, ReturnShipping
from diskprep.importjob.shipping import check_return, serves

_PANEL = "Return"


def _option(name: str, text: str) -> object:
    return typer.Option(f"--return-{name}", help=text, show_default=False, rich_help_panel=_PANEL)


Recipient = Annotated[str | None, _option("recipient", "Who gets the disks back.")]
Street = Annotated[str | None, _option("street", "Street and number.")]
Street2 = Annotated[str | None, _option("street2", "A second line.")]
City = Annotated[str | None, _option("city", "City.")]
State = Annotated[str | None, _option("state", "State or province, where addresses have one.")]
PostalCode = Annotated[str | None, _option("postal-code", "Postal code.")]
Country = Annotated[str | None, _option("country", "Country or region.")]
Phone = Annotated[str | None, _option("phone", "For the carrier.")]
Email = Annotated[str | None, _option("email", "For the datacenter's operators.")]
Carrier = Annotated[str | None, _option("carrier", "Who brings them back; with --return-account.")]
Account = Annotated[str | None, _option("account", "Your account number with that carrier.")]

#: fields that the service insists on -> how they are called here
_NEEDED = {
    "recipient_name": "recipient",
    "street_address1": "street",
    "city": "city",
    "postal_code": "postal-code",
    "country_or_region": "country",
    "phone": "phone",
    "email": "email",
}


def return_address(
    *,
    recipient_name: str | None,
    street_address1: str | None,
    street_address2: str | None,
    city: str | None,
    state_or_province: str | None,
    postal_code: str | None,
    country_or_region: str | None,
    phone: str | None,
    email: str | None,
    wanted: bool = False,
) -> ReturnAddress | None:
    """The address, or None when none was given and none is `wanted`. On a terminal what is missing of it is asked for.

    Raises UsageError that names the options that are missing, or what cannot stand on a label.
    """
    given = {
        "recipient_name": recipient_name,
        "street_address1": street_address1,
        "street_address2": street_address2,
        "city": city,
        "state_or_province": state_or_province,
        "postal_code": postal_code,
        "country_or_region": country_or_region,
        "phone": phone,
        "email": email,
    }
    if not wanted and all(value is None for value in given.values()):
        return None
    missing = [name for name in _NEEDED if not (given[name] or "").strip()]
    if missing and not os.isatty(0):
        raise UsageError(
            f"the return address is not complete: {', '.join(f'--return-{_NEEDED[name]}' for name in missing)}",
            hint="the service needs it before the package is sent",
        )
    for name in missing:
        given[name] = str(typer.prompt(f"return address, {_NEEDED[name].replace('-', ' ')}", err=True))
    address = ReturnAddress(**{name: (value or "").strip() for name, value in given.items()})
    check_return(address)
    return address


def return_shipping(carrier: str | None, account: str | None) -> ReturnShipping | None:
    """Who carries disks back on whose account, or None. Raises UsageError when only one of both was given."""
    if carrier is None and account is None:
        return None
    if not (carrier or "").strip() or not (account or "").strip():
        raise UsageError("--return-carrier and --return-account belong together")
    back = ReturnShipping(carrier=(carrier or "").strip(), account_number=(account or "").strip())
    check_return(None, back)
    return back


def warn_of_carrier(back: ReturnShipping | None, carriers: Sequence[str]) -> None:
    """Say so on stderr when disks are to come back with a carrier that the service does not name."""
    if back is not None and not serves(back.carrier, carriers):
        told = f"--return-carrier: {back.carrier} is none of the carriers that the service names: {', '.join(carriers)}"
        print(output.escape(told), file=sys.stderr)
