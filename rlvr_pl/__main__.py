"""``python -m rlvr_pl {fit,validate,test,predict,compare,report}``."""

from rlvr_pl.run.signals import STOP

if __name__ == "__main__":
    with STOP.handled():
        STOP.start()
        from rlvr_pl.main import main

        main()
