"""Run and judge: the pressure matrix, the doctor, and the probes that both share."""
