"""Building: staged slices become Parquet files and one commit to the dataset's Delta table (invariants 5 and 6).

In the order in which a build meets them:

- A **due** dataset has reached a threshold (``thresholds``), so that a tick asks for a flush (``due``).
- An **order** says what is to be built: which windows of which dataset, for whom and why (``order``).
- A **claim** is what the ledger gives to an order: a ``Build`` in flight, and the slices and windows that are its own.
- A **publication** is the build on its way: files are written (``writing``), committed and recorded (``publication``).
- A **commit** is in the table. It is recorded with all others that become visible with it (``completion``).
- A **report** says what a build did (``report``).
- A build that did not end by itself is **settled**: the table decides what became of it (``recovery``).

The kinds of build differ in what they claim and in what they write:

============  ==============================================  =========================================================
kind          claims                                          writes
============  ==============================================  =========================================================
``flush``     what is staged, but in windows of other builds  its rows; with a key, its windows anew
``rebuild``   what is staged, and all rows of its windows     its windows anew, from segments
``compact``   windows with small files                        their rows, in fewer files
``expire``    windows that have had their time                nothing
``repair``    windows with damaged files                      what can still be read of these files
============  ==============================================  =========================================================

What cannot be read back is set aside (``damage``), and a table that is gone is given up on purpose (``lost_table``).
"""
