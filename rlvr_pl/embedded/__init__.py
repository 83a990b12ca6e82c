"""The embedded model (``model/``) and how it is made (``pretrain``)."""
