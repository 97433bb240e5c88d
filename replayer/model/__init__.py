"""The model of FastDeploy's V1 scheduler: events in, decisions out."""
