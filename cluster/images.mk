# The images: built, tagged, pushed, loaded. Registry and tag are those of k8s/components/images/kustomization.yaml.
#
#   make images REGISTRY=registry.example/team TAG=1.2.0        # sets both there, in compose.yaml and for ray up
#   make image-build [IMAGES="fedray fedray-gpu fedray-mlflow"] # fedray-gpu takes gigabytes, so only where it is asked for
#   make image-tag, image-push                                  # under the names that the manifests have; login is docker's
#   make kind-load [KIND=name]                                  # into the nodes of a kind cluster, without a registry
#   make pull-secret DOCKER_CONFIG_JSON=~/.docker/config.json   # what the pods present to a registry that asks

IMAGES     ?= fedray fedray-mlflow
KIND       ?= kind
TORCH_GPU  ?= https://download.pytorch.org/whl/cu130
NAMES_FILE := k8s/components/images/kustomization.yaml
COPIES     := cluster/compose.yaml cluster/ray-up/aws.yaml cluster/ray-up/on-premises.yaml
DOCKER_CONFIG_JSON ?= $(HOME)/.docker/config.json

# The name with registry and tag under which the manifests know an image.
full_name = $(shell sed -n 's/^- {name: $(1), newName: \(.*\), newTag: "\(.*\)"}$$/\1:\2/p' $(NAMES_FILE))

BUILD_fedray        := --target fedray
BUILD_fedray-gpu    := --target fedray --build-arg TORCH_INDEX=$(TORCH_GPU)
BUILD_fedray-mlflow := --target mlflow

.PHONY: images image-build image-tag image-push kind-load pull-secret

images:                ## set registry and tag of all images
	@test -n "$(REGISTRY)" && test -n "$(TAG)" || { echo 'usage: make images REGISTRY=registry.example/team TAG=1.2.0'; exit 2; }
	sed -i -E 's#^(- \{name: [^,]*, newName: ).*/([^/,]+), newTag: .*\}$$#\1$(REGISTRY)/\2, newTag: "$(TAG)"}#' $(NAMES_FILE)
	sed -i -E '/image:/s#[A-Za-z0-9.:/_-]+/(fedray|fedray-gpu|mlflow):[A-Za-z0-9._-]+#$(REGISTRY)/\1:$(TAG)#' $(COPIES)

image-build:           ## build the images, each under its bare name
	$(foreach image,$(IMAGES),docker build -f cluster/Dockerfile $(BUILD_$(image)) -t $(image) . &&) true

image-tag:             ## give them the names that the manifests have
	$(foreach image,$(IMAGES),docker tag $(image) $(call full_name,$(image)) &&) true

image-push: image-tag  ## push them to the registry
	$(foreach image,$(IMAGES),docker push $(call full_name,$(image)) &&) true

kind-load: image-tag   ## load them into a kind cluster's nodes
	kind load docker-image --name $(KIND) $(foreach image,$(IMAGES),$(call full_name,$(image)))

pull-secret:           ## the Secret of components/pull-secret, from a docker config file
	kubectl -n fedray create secret generic fedray-registry --type=kubernetes.io/dockerconfigjson \
	    --from-file=.dockerconfigjson=$(DOCKER_CONFIG_JSON)
