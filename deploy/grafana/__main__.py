"""`python -m deploy.grafana`: the JSON of the dashboards, written anew from the code; a test demands that it is."""

from deploy.grafana import files

if __name__ == "__main__":
    files.write()
    print(*sorted(path.name for path in files.FOLDER.glob("*.json")))
