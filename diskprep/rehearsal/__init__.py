"""The whole journey on one computer: real formats, the real client, a local datacenter. Nothing leaves the machine."""
