"""The import job: created from prepared disks, given its tracking number in time, watched until the drives are back."""
