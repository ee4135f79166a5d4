"""What is made of results.

    plots          pictures of partitions and runs
    attribution    which inputs a model's output rests on
    inversion      what an update tells of a client's examples
    membership     whether a model tells which examples it was trained on
    runfolder      what a run leaves on disk
    trackers       where its numbers go while it goes on
    recorded       that folder, read
    comparison     runs beside each other, over seeds
    report         pages of runs, comparisons and experiments
    sheets         tables of text

matplotlib, scipy and jinja2 are imported by the functions that need them.
"""
