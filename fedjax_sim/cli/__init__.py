"""The command line.

    main          `fedjax-sim train | reproduce NAME | datasets`: help, options, exit status
    options       the options of `train`: what they mean, their defaults, and their form in TOML
    train         what `train` does
    build         its data, model and algorithm, built from the options
    output        what it shows, and what it leaves in its folder
    interrupts    Ctrl-C, kept from losing rounds that are done

Nothing is imported here, so that help and typing errors come at once.
"""
