"""The gRPC service: who may call what and how often (``policy``), how calls are checked and errors told
(``dispatch``, ``errors``, ``limits``), and what each call does."""
