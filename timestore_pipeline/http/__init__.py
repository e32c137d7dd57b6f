"""The HTTP way in: batches are posted, and answered once they are durable. A plain library, as its callers are."""
