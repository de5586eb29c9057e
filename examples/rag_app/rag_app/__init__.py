"""An app that answers questions about files: what a user of chroma_manager would write, small and complete.

From the top down; a file imports only from lines below its own:

    main                                the FastAPI app: its lifespan, its routes, the page in static/
    guard                               which requests are let in
    routes                              what a browser or a program asks for: files, chat, events, engine
    dependencies                        what a route is given (Depends)
    services                            what a worker has: the manager, handler and chatbot on it, the switch of engines
    azure_chatbot                       finds the passages that answer a question, and streams the answer
    embedding_handler                   embeds files in parallel threads, and goes on with what other workers have left
    uploads  extraction                 what is let in; its text, read in a process of its own
    bucket  model  catalog              the files; vectors and words; which files there are
    pulse  shown                        the event loop; what pages show
    kinds  local_model  catalog_file  extraction_child
    passages  configs  errors

Databases are the manager's business, and are not here.
"""
