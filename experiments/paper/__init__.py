"""The figures of the paper: their runs, their networks and the ledger of printed numbers."""
