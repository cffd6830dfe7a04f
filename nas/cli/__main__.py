from nas.cli.commands import main

main()
