"""The page report.html: one file with everything about a run or several runs, which a browser opens without a server.

reading.py collects what there is about a run, and make.py writes the page. contents.py and charts.py say what the page
shows of a run, evaluation.py and gallery.py what it shows of an evaluation. The template, the styles and the scripts
lie beside them.
"""
