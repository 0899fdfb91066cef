"""How Flower shows the tasks. Its address and login come from whoever starts it."""

tasks_columns = "name,uuid,state,args,received,started,runtime,retries,worker"
natural_time = True
max_tasks = 10_000
purge_offline_workers = 3600
