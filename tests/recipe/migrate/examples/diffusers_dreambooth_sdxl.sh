accelerate launch train_dreambooth_lora_sdxl.py \
  --pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0 \
  --instance_data_dir=dog --output_dir=lora-trained-xl --mixed_precision="fp16" \
  --instance_prompt="a photo of sks dog" --resolution=1024 --train_batch_size=1 \
  --gradient_accumulation_steps=4 --learning_rate=1.0 --optimizer="prodigy" --prodigy_safeguard_warmup=True \
  --prodigy_use_bias_correction=True --adam_beta1=0.9 --adam_beta2=0.99 --adam_weight_decay=0.01 \
  --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=500 --train_text_encoder --text_encoder_lr=1.0 \
  --repeats=2 --snr_gamma=5 --rank=8 --use_dora --seed="0"
