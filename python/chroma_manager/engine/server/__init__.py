"""The engine `server`: instances on a Chroma server, and the HTTP requests of their clients.

| file | what lives there |
| --- | --- |
| `server.py` | what the Rust half calls: opens and deletes instances, and makes the calls of their clients |
| `layouts.py` | where an instance is on a server: in a database of its own, or in one with the others |
| `listing.py` | how a list is read page by page while others change it |
| `names.py` | the names of instances, as Chroma takes them |
| `api.py` | Chroma's API over a connection |
| `prefixed.py` | the same for instances that share a database |
| `requests.py` | what a request is, and whether it may be repeated |
| `session.py` | the connections, time limits and retries |
| `answers.py` | what an answer means |

Nothing here is about a server of Chroma's that this package starts: it starts none.
"""
