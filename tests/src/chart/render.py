"""Renders charts with Helm's own engine: requests on standard input, answers on standard output, as JSON.

A request has "chart" (a folder or an archive) and "values"; with "lint" the chart is linted with them, and
with "package" (a folder) it is packed first. An answer has "files" or "error".
"""

import json
import sys

sys.path.insert(0, "/usr/local/lib/millrace-tests/helm")
import helm_python  # noqa: E402


def answer(request):
    path, values = request["chart"], request["values"]
    try:
        if "package" in request:
            path = helm_python.package(path, destination=request["package"])
        if request.get("lint"):
            return {"lint": helm_python.lint(path, values, strict=True)}
        with helm_python.Chart.load(path) as chart:
            return {"files": chart.render(values, name="millrace-node", namespace="millrace-system")}
    except helm_python.HelmError as error:
        return {"error": str(error)}


json.dump([answer(request) for request in json.load(sys.stdin)], sys.stdout)
