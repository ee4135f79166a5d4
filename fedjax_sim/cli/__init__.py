"""The command line.

    main          `fedjax-sim train | reproduce NAME | compare RUN... | datasets | parts`: help,
                  options, exit status
    train         what `train` does
    options       the options of `train` as arguments, and as help
    parts         what `parts` does
    output        what it shows, and what it leaves in its folder
    compare       what `compare` does
    interrupts    Ctrl-C, kept from losing rounds that are done

Nothing is imported here, so that help and typing errors come at once.
"""
