"""The command line.

    main          `fedjax-sim train | reproduce NAME | compare RUN... | datasets | parts`: help,
                  options, exit status
    train         what `train` does
    train_options its options: what they mean, their defaults, and their form in TOML
    parts         parts of the package and of files, found by what they return
    build         its data, model and algorithm, built from the options
    output        what it shows, and what it leaves in its folder
    compare       what `compare` does
    interrupts    Ctrl-C, kept from losing rounds that are done

Nothing is imported here, so that help and typing errors come at once.
"""
