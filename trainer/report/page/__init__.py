"""The page report.html: one file about a run or several runs, which a browser opens without a server.

reading.py reads the files of a run, and make.py writes the page. contents.py and charts.py compute what the page shows
about a run; evaluation.py and gallery.py compute what it shows about an evaluation. The template, the styles and the
scripts are in this folder too.
"""
