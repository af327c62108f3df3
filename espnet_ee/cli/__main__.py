from espnet_ee.cli.main import entry

if __name__ == "__main__":  # not in the spawned children of `--nj`
    entry()
