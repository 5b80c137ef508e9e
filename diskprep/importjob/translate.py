"""The client's models from and to ours. The client's show recovery passwords in their repr: none leaves `service`."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from azure.mgmt.storageimportexport import models as sdk

from diskprep.importjob.model import (
    Address,
    DriveState,
    DriveStatus,
    Job,
    JobRequest,
    JobState,
    Location,
    LogLevel,
    Package,
    ReturnAddress,
    ReturnShipping,
    known,
)

_GROUP = re.compile(r"/resourceGroups/([^/]+)/", re.IGNORECASE)
_ADDRESS = ("recipient_name", "street_address1", "street_address2", "city", "state_or_province", "postal_code")
_ADDRESS_ALL = (*_ADDRESS, "country_or_region", "phone")


def text(value: Any) -> str:
    """What the service left out is empty."""
    return "" if value is None else str(value)


def job(answer: Any) -> Job:
    """A job as answered. Raises ValueError when it has no name, or AttributeError when it is no job at all."""
    details = sdk.JobDetails() if answer.properties is None else answer.properties
    if not answer.name:
        raise ValueError("a job without a name")
    return Job(
        name=text(answer.name),
        resource_group=group[1] if (group := _GROUP.search(text(answer.id))) else "",
        location=text(answer.location),
        storage_account_id=text(details.storage_account_id),
        state=known(JobState, text(details.state)),
        drives=tuple(_drive(drive) for drive in details.drive_list or ()),
        shipping_address=_address(details.shipping_information),
        return_address=_return_address(details.return_address),
        return_shipping=_return_shipping(details.return_shipping),
        package=_package(details.delivery_package),
        return_package=_package(details.return_package),
        percent_complete=details.percent_complete or 0,
        diagnostics_path=text(details.diagnostics_path),
        log_level=known(LogLevel, text(details.log_level)),
        backup_drive_manifest=bool(details.backup_drive_manifest),
        cancel_requested=bool(details.cancel_requested),
    )


def location(answer: Any) -> Location:
    """A datacenter as answered. Raises AttributeError when it is none."""
    return Location(
        name=text(answer.id).rpartition("/")[2],
        display_name=text(answer.name),
        address=Address(**{name: text(getattr(answer, name)) for name in _ADDRESS_ALL}),
        carriers=tuple(text(carrier) for carrier in answer.supported_carriers or ()),
        alternates=tuple(text(item).rpartition("/")[2] for item in answer.alternate_locations or ()),
    )


def put_parameters(request: JobRequest) -> Any:
    """The body that creates a job. It holds the recovery passwords."""
    details = sdk.JobDetails(
        storage_account_id=request.storage_account_id,
        job_type="Import",
        return_address=_to_return_address(request.return_address),
        return_shipping=_to_return_shipping(request.return_shipping),
        diagnostics_path=request.diagnostics_path,
        log_level=str(request.log_level),
        backup_drive_manifest=request.backup_drive_manifest,
        drive_list=[
            sdk.DriveStatus(
                drive_id=drive.drive_id,
                bit_locker_key=drive.recovery_password.reveal(),
                manifest_file=drive.manifest_file,
                manifest_hash=drive.manifest_hash,
                drive_header_hash="",  # its algorithm is not public; every published sample has it empty
            )
            for drive in request.drives
        ],
    )
    return sdk.PutJobParameters(location=request.location, properties=details)


def ship_parameters(
    package: Package, return_address: ReturnAddress | None, return_shipping: ReturnShipping | None
) -> Any:
    """The body that enters a package. The client insists on a count and a date, which the service does not."""
    return sdk.UpdateJobParameters(
        state=str(JobState.SHIPPING),
        return_address=_to_return_address(return_address),
        return_shipping=_to_return_shipping(return_shipping),
        delivery_package=sdk.PackageInfomation(
            carrier_name=package.carrier,
            tracking_number=package.tracking_number,
            drive_count=package.drive_count,
            ship_date="" if package.ship_date is None else package.ship_date.isoformat(),
        ),
    )


def cancel_parameters() -> Any:
    return sdk.UpdateJobParameters(cancel_requested=True)


def same_parameters(job: Job) -> Any:
    """The body of an update that changes nothing: what the job has already."""
    return sdk.UpdateJobParameters(
        log_level=text(job.log_level) or str(LogLevel.ERROR), backup_drive_manifest=job.backup_drive_manifest
    )


def _drive(drive: Any) -> DriveStatus:
    return DriveStatus(
        drive_id=text(drive.drive_id),
        manifest_file=text(drive.manifest_file),
        manifest_hash=text(drive.manifest_hash),
        state=known(DriveState, text(drive.state)),
        copy_status=text(drive.copy_status),
        percent_complete=drive.percent_complete or 0,
        bytes_succeeded=drive.bytes_succeeded or 0,
        verbose_log_uri=text(drive.verbose_log_uri),
        error_log_uri=text(drive.error_log_uri),
        manifest_uri=text(drive.manifest_uri),
    )


def _address(model: Any) -> Address | None:
    return None if model is None else Address(**{name: text(getattr(model, name)) for name in _ADDRESS_ALL})


def _return_address(model: Any) -> ReturnAddress | None:
    if model is None:
        return None
    return ReturnAddress(**{name: text(getattr(model, name)) for name in (*_ADDRESS_ALL, "email")})


def _return_shipping(model: Any) -> ReturnShipping | None:
    if model is None:
        return None
    return ReturnShipping(carrier=text(model.carrier_name), account_number=text(model.carrier_account_number))


def _package(model: Any) -> Package | None:
    if model is None:
        return None
    try:
        ship_date = date.fromisoformat(text(model.ship_date)[:10])
    except ValueError:
        ship_date = None
    return Package(
        carrier=text(model.carrier_name),
        tracking_number=text(model.tracking_number),
        drive_count=model.drive_count or 0,
        ship_date=ship_date,
    )


def _to_return_address(address: ReturnAddress | None) -> Any:
    if address is None:
        return None
    return sdk.ReturnAddress(**{name: getattr(address, name) for name in (*_ADDRESS_ALL, "email")})


def _to_return_shipping(shipping: ReturnShipping | None) -> Any:
    if shipping is None:
        return None
    return sdk.ReturnShipping(carrier_name=shipping.carrier, carrier_account_number=shipping.account_number)
