"""`trackstar serve`: traces on request, by page and by HTTP.

service.py       what is done: traces one at a time, completions, explanations
jobs.py          traces that wait, run and have ended; model_thread.py: calls of the model
app.py           what each request gets for an answer; requests.py, answers.py, errors.py
openapi.py       the API's operations and their document; messages.py, typed.py: what goes over the wire
guard.py         who may ask; connections.py: uvicorn, its time limits and its end; limits.py
"""
