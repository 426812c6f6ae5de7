from prunekit.run.cli import main

main()
