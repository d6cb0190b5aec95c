"""The paper's figures by number: their runs and networks, and the ledger of the printed numbers."""
