.DEFAULT_GOAL := help
export FLOW ?= suggest-activity/daily
export TO
export FILE
export REPLAY
export OSV_URL
override export PARAMS := $(value PARAMS)

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

try: ## A look without Docker: one run of the daily flow, its artifact shown
	@setup/try.sh

up: ## From whatever this machine is to a running stack, its flows deployed, one run done
	@setup/up.sh

down: ## Take the stack down; data stays
	@ops/down.sh
	@echo "Down. History, schedules and settings are kept. Again: make up. For good: make destroy"

destroy: ## Remove the stack and its data (asks; YES=1 skips the question)
	@ops/destroy.sh

deploy: ## Apply flows/, prefect.yaml and the base job template to the running stack
	@ops/deploy.sh

run: ## Run a deployment now and show its logs: make run FLOW=cat-fact/on-demand PARAMS='{"count": 3}'
	@ops/run.sh

data: ## List the files that flows wrote; make data TO=folder copies them out
	@ops/data.sh

backup: ## Write a backup of the running stack to backups/: its path is the last line
	@ops/backup.sh

restore: engine ## Bring a stopped stack, or a new machine, to a backup: make restore FILE=backups/…
	@ops/restore.sh

upgrade: ## After a git pull: backup, build, migrate, verify; back to the old version if that fails
	@ops/upgrade.sh

rotate-secrets: ## A new login, database password and encryption key for the running stack
	@ops/rotate-secrets.sh

status: ## Is everything right? Services, worker, last runs, next runs
	@ops/status.sh

audit: ## Is everything locked down? The stack and a flow container, by CIS' and OWASP's rules
	@ops/audit.sh

sbom: engine venv ## Write what is in each image to sbom/: packages, versions, licences, as CycloneDX
	@ops/sbom.sh

logs: ## Follow the logs of all services
	@docker compose logs --follow --tail 100

engine: ## Install and start a Docker engine, if none answers
	@setup/engine.sh

images: engine ## Build or pull every image
	@setup/images.sh

venv: ## .venv with uv, tests and linters (activate it, or: .venv/bin/uv run …)
	@setup/venv.sh .venv

# Folder by folder: the unit tests, which are short, come last.
test: engine venv ## Every test, on stacks of their own
	@setup/base-images.sh
	@.venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

chaos: engine venv ## Every fault three times, in 30 to 45 minutes; FAULT=server some, SOAK=60 (minutes) at random
	@setup/base-images.sh
	@.venv/bin/pytest -m chaos -s tests/faults/test_chaos.py

bench: engine ## Measure this stack beside stock Prefect and a bare container, in 15 minutes; MINUTES=30 on slow cores
	@setup/venv.sh .venv --group bench
	@setup/base-images.sh
	@.venv/bin/python -m bench $(if $(MINUTES),--minutes $(MINUTES))

lint: engine venv ## ruff, mypy, shellcheck, hadolint, yamllint, uv.lock, the Compose file
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/shellcheck --external-sources $$(git ls-files '*.sh') .ci/run
	.venv/bin/hadolint $$(git ls-files '*Dockerfile')
	.venv/bin/yamllint --strict $$(git ls-files --cached --others --exclude-standard '*.yml' '*.yaml')
	.venv/bin/uv lock --check --quiet
	docker compose --env-file .env.example config --quiet
	TLS_HOST=localhost docker compose --env-file .env.example config --quiet

.PHONY: help try up down destroy deploy run data backup restore upgrade rotate-secrets status audit sbom logs engine images venv test chaos bench lint
