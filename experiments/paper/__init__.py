"""The paper's figures by number, and the ledger of its printed numbers."""
