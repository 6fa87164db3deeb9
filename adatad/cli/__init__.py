"""The command `adatad`: one file a verb or group of verbs, which parses, calls one function, and prints."""
