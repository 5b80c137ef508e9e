"""The local stand-in of the Import/Export service: its ARM interface, its datacenter, its clock. Loopback only."""
