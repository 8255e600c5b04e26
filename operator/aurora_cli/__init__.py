"""``kubectl aurora``: look at a speculator, decide about its drafts, and find out what is wrong with it.

The program runs on a person's machine with the rights of their kubeconfig. It never imports the operator or the
runtime: everything that it knows comes from the API server and, if asked for, from the store.
"""
