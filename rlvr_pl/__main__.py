"""``python -m rlvr_pl {fit,validate,test,predict,compare,report}``."""

from rlvr_pl.main import main

if __name__ == "__main__":
    main()
