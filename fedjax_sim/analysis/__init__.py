"""What is made of results.

    plots          pictures of partitions and runs
    attribution    which inputs a model's output rests on
    runfolder      what a run leaves on disk
    trackers       where its numbers go while it goes on

matplotlib is imported by the functions that draw.
"""
